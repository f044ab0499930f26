"""The two looks of MiniCity: what stands where, which colours things have, and what the camera does to the picture.

Tune the difficulty of the benchmark here: `TARGET` against `SOURCE` is the domain gap, one named strength per line.
"""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[float, float, float]
"""RGB, 0-255."""
Colors = tuple[Color, ...]
Range = tuple[float, float]
"""Smallest and largest value of a uniform draw; integers for counts (both ends included)."""


@dataclass(frozen=True)
class SceneStatistics:
    """What a street looks like. Lengths in metres; shares are probabilities per scene unless said otherwise.

    Attributes:
        camera_height: Of the eye above the road.
        focal: Focal length in image widths.
        horizon: Height of the horizon line in image heights from the top.
        vanishing_shift: Sideways shift of the vanishing point from the middle, in image widths.
        road_half_width: Half of the kerb-to-kerb width.
        sidewalk_width: Of either sidewalk.
        building_height: Of one house.
        building_length: Of one house along the street.
        building_gap: Probability that a plot is left open (grass and trees).
        cars: Number of cars.
        persons: Number of persons on foot.
        trees: Number of street trees.
        poles: Number of poles with or without lamp, sign or light.
        train: Probability of a train.
        bus: Probability of a bus.
        truck: Probability of a truck.
        motorcycle: Probability of motorcycles.
        bicycle: Probability of bicycles.
        ridden: Probability that a bicycle or motorcycle carries a rider.
        vehicle_depth: Distance of trucks, buses and trains.
        person_depth: Distance of persons.
        two_wheeler_depth: Distance of bicycles and motorcycles.
        wall: Probability of a wall along the left or the right.
        fence: Probability of a fence along the left or the right.
        verge: Probability, per side, of a grass strip.
        hood: Probability that the own car's hood shows (void).
        clutter: Probability of bins and boxes (void).
    """

    camera_height: Range
    focal: Range
    horizon: Range
    vanishing_shift: Range
    road_half_width: Range
    sidewalk_width: Range
    building_height: Range
    building_length: Range
    building_gap: float
    cars: tuple[int, int]
    persons: tuple[int, int]
    trees: tuple[int, int]
    poles: tuple[int, int]
    train: float
    bus: float
    truck: float
    motorcycle: float
    bicycle: float
    ridden: float
    vehicle_depth: Range = (9.0, 26.0)
    person_depth: Range = (4.5, 11.0)
    two_wheeler_depth: Range = (7.0, 16.0)
    wall: float = 0.32
    fence: float = 0.36
    verge: float = 0.5
    hood: float = 0.3
    clutter: float = 0.25


@dataclass(frozen=True)
class Palette:
    """Colours each kind of thing is drawn from; `jitter` is the spread of brightness around them (a factor)."""

    sky_top: Colors
    sky_low: Colors
    haze: Colors
    road: Colors
    marking: Colors
    sidewalk: Colors
    terrain: Colors
    building: Colors
    window: Colors
    wall: Colors
    fence: Colors
    pole: Colors
    vegetation: Colors
    trunk: Colors
    car: Colors
    truck: Colors
    bus: Colors
    train: Colors
    motorcycle: Colors
    bicycle: Colors
    clothes: Colors
    skin: Colors
    jitter: float = 0.1


@dataclass(frozen=True)
class Photography:
    """What stands between the scene and the picture. Every strength is 0 (or its neutral value) for "not at all".

    Attributes:
        haze: Density of haze in 1/m; a share `1 - exp(-haze * depth)` of a thing's colour turns into haze.
        texture: Strength of surface texture, relative to each class's own amplitude.
        shadow: Darkening under shadows cast over the street, 0-1.
        gradient: Change of light from one side of the picture to the other, 0-1.
        exposure: Factor on all light.
        gamma: Exponent on intensities in [0, 1].
        saturation: Factor on the distance from grey.
        cast: Largest relative gain or loss of a colour channel.
        vignette: Darkening in the corners, 0-1.
        blur: Standard deviation of defocus in pixels of a 128-row picture.
        motion: Probability of sideways motion blur.
        noise: Standard deviation of sensor noise at mid-grey, 0-255.
        jpeg_quality: Of a lossy round trip, 1-100; `None` for none.
    """

    haze: Range = (0.0, 0.0)
    texture: Range = (0.0, 0.0)
    shadow: Range = (0.0, 0.0)
    gradient: Range = (0.0, 0.0)
    exposure: Range = (1.0, 1.0)
    gamma: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    cast: float = 0.0
    vignette: Range = (0.0, 0.0)
    blur: Range = (0.0, 0.0)
    motion: float = 0.0
    noise: Range = (0.0, 0.0)
    jpeg_quality: tuple[int, int] | None = None


@dataclass(frozen=True)
class Style:
    """One domain."""

    scene: SceneStatistics
    palette: Palette
    photography: Photography


SOURCE = Style(
    SceneStatistics(
        camera_height=(1.5, 2.1),
        focal=(0.68, 0.80),
        horizon=(0.42, 0.50),
        vanishing_shift=(-0.12, 0.12),
        road_half_width=(4.6, 6.5),
        sidewalk_width=(2.4, 4.0),
        building_height=(6.0, 14.0),
        building_length=(8.0, 18.0),
        building_gap=0.22,
        cars=(1, 5),
        persons=(1, 4),
        trees=(2, 6),
        poles=(2, 4),
        train=0.02,
        bus=0.05,
        truck=0.24,
        motorcycle=0.035,
        bicycle=0.055,
        ridden=0.55,
    ),
    Palette(
        sky_top=((70, 140, 225), (50, 115, 215), (95, 165, 235), (150, 186, 220)),
        sky_low=((185, 220, 250), (205, 230, 250), (240, 220, 195), (222, 232, 240)),
        haze=((195, 220, 245),),
        road=((84, 86, 94), (98, 98, 102), (72, 74, 84), (112, 110, 112)),
        marking=((245, 245, 240), (245, 215, 90)),
        sidewalk=((186, 174, 160), (200, 190, 182), (172, 158, 150)),
        terrain=((124, 176, 62), (148, 186, 76), (104, 160, 60), (190, 170, 100)),
        building=(
            (214, 150, 104), (196, 96, 76), (232, 202, 150), (160, 176, 196), (226, 176, 170), (190, 190, 180),
            (146, 108, 90), (240, 228, 206), (140, 138, 138),
        ),
        window=((70, 110, 150), (50, 70, 100), (130, 180, 210)),
        wall=((176, 166, 150), (190, 130, 100), (150, 150, 156)),
        fence=((120, 82, 52), (70, 110, 80), (230, 230, 225), (60, 60, 66)),
        pole=((120, 124, 130), (90, 92, 96), (150, 150, 150)),
        vegetation=((56, 134, 50), (76, 156, 58), (40, 112, 52), (110, 160, 50)),
        trunk=((110, 76, 50), (90, 66, 50)),
        car=(
            (206, 40, 44), (40, 90, 200), (240, 240, 240), (245, 190, 40), (36, 38, 44), (60, 160, 100),
            (180, 186, 196), (230, 120, 40),
        ),
        truck=((236, 236, 230), (60, 110, 190), (200, 60, 50), (90, 150, 90), (220, 170, 60)),
        bus=((240, 190, 40), (214, 50, 50), (60, 130, 210), (240, 240, 236)),
        train=((240, 130, 40), (70, 160, 110), (230, 230, 235), (200, 50, 70)),
        motorcycle=((200, 40, 40), (30, 30, 36), (40, 80, 180), (230, 150, 40)),
        bicycle=((200, 50, 50), (40, 90, 190), (50, 50, 50), (60, 160, 90), (230, 200, 60)),
        clothes=(
            (210, 60, 60), (60, 100, 200), (240, 220, 90), (70, 160, 110), (240, 240, 240), (60, 60, 80),
            (200, 100, 180),
        ),
        skin=((236, 190, 160), (190, 136, 100), (120, 80, 60)),
        jitter=0.10,
    ),
    Photography(haze=(0.001, 0.004), texture=(0.15, 0.35), exposure=(0.92, 1.06), noise=(0.0, 1.5)),
)  # fmt: skip
"""Game-like: sunny, clean, wide streets of low houses in saturated colours."""

TARGET = Style(
    SceneStatistics(
        camera_height=(1.15, 1.5),
        focal=(0.78, 0.92),
        horizon=(0.38, 0.47),
        vanishing_shift=(-0.08, 0.08),
        road_half_width=(3.6, 5.2),
        sidewalk_width=(1.8, 3.4),
        building_height=(9.0, 22.0),
        building_length=(7.0, 15.0),
        building_gap=0.15,
        cars=(2, 6),
        persons=(1, 5),
        trees=(2, 7),
        poles=(3, 5),
        train=0.06,
        bus=0.10,
        truck=0.18,
        motorcycle=0.16,
        bicycle=0.40,
        ridden=0.45,
        hood=0.55,
    ),
    Palette(
        sky_top=((170, 190, 212), (200, 206, 212), (126, 164, 208), (184, 190, 200)),
        sky_low=((214, 218, 222), (228, 226, 220), (206, 212, 220)),
        haze=((204, 208, 212), (212, 206, 198)),
        road=((112, 108, 106), (92, 92, 96), (128, 122, 114)),
        marking=((206, 204, 198), (190, 186, 176)),
        sidewalk=((146, 142, 140), (128, 122, 120), (160, 150, 142)),
        terrain=((122, 138, 72), (144, 136, 84), (98, 124, 62), (128, 112, 80)),
        building=(
            (152, 146, 138), (120, 104, 94), (182, 174, 160), (104, 104, 110), (140, 96, 82), (192, 188, 184),
            (160, 140, 112),
        ),
        window=((52, 58, 66), (78, 86, 94), (36, 38, 44)),
        wall=((136, 130, 122), (116, 110, 104), (134, 106, 92)),
        fence=((84, 88, 88), (126, 98, 70), (80, 104, 88), (186, 184, 178)),
        pole=((92, 94, 96), (70, 74, 74), (120, 118, 112)),
        vegetation=((70, 96, 48), (92, 110, 52), (52, 80, 46), (128, 108, 50)),
        trunk=((78, 68, 58), (62, 56, 50)),
        car=(
            (34, 36, 40), (190, 192, 194), (118, 122, 126), (228, 228, 226), (44, 56, 84), (110, 34, 36), (70, 76, 80),
        ),
        truck=((206, 204, 198), (96, 108, 124), (140, 120, 92), (60, 84, 108), (180, 176, 160)),
        bus=((196, 188, 170), (150, 44, 44), (68, 110, 90), (206, 170, 70)),
        train=((206, 186, 110), (150, 60, 56), (180, 184, 188), (60, 100, 112)),
        motorcycle=((40, 40, 44), (120, 36, 36), (90, 96, 104), (50, 60, 90)),
        bicycle=((40, 42, 44), (110, 112, 116), (80, 50, 46), (50, 70, 90)),
        clothes=(
            (150, 60, 56), (74, 96, 150), (44, 46, 56), (80, 74, 70), (52, 66, 96), (120, 112, 104),
            (104, 52, 52), (160, 156, 150), (60, 70, 58),
        ),
        skin=((206, 168, 146), (160, 118, 92), (104, 74, 58)),
        jitter=0.16,
    ),
    Photography(
        haze=(0.002, 0.008),
        texture=(0.3, 0.6),
        shadow=(0.0, 0.3),
        gradient=(0.0, 0.15),
        exposure=(0.92, 1.15),
        gamma=(0.8, 1.1),
        saturation=(0.82, 1.0),
        cast=0.05,
        vignette=(0.05, 0.25),
        blur=(0.15, 0.45),
        motion=0.15,
        noise=(0.8, 2.8),
        jpeg_quality=(55, 90),
    ),
)  # fmt: skip
"""Camera-like: overcast or hazy, narrow streets of tall grey houses, textured, blurred and noisy."""

STYLES = {"source": SOURCE, "target": TARGET}
