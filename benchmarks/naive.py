"""What surrounds the network in a step, written literally: the naive sides of `bench.py`.

Image after image and operation after operation, as the definitions read and as no one would call slow at first sight.
Images are RGB float in 0-255 minus `MEAN` (in the published programs BGR, which changes no count). Random numbers are
drawn as the package draws them, so that both sides get the same.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE_INDEX = 255
THRESHOLD = 0.968
MEAN = (122.67891434, 116.66876762, 104.00698793)


def class_mask(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels of half of each image's classes, void among them: int64 (N, H, W)."""
    scores = torch.rand(len(mask), 256, generator=generator)
    masks = []
    for labels, score in zip(mask, scores, strict=True):
        classes = torch.unique(labels)
        order = score[classes].argsort(descending=True)
        chosen = classes[order[: (len(classes) + 1) // 2]]
        masks.append((labels.unsqueeze(0) == chosen.view(-1, 1, 1)).long().sum(dim=0))
    return torch.stack(masks)


def class_pool(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels of half of each image's classes after fence, rounded down but at least one (EHTDI): int64 (N, H, W)."""
    scores = torch.rand(len(mask), 256, generator=generator)
    masks = []
    for labels, score in zip(mask, scores, strict=True):
        pool = [c for c in torch.unique(labels).tolist() if c > 4 and c != IGNORE_INDEX]
        number = 1 if len(pool) == 1 else len(pool) // 2
        M = torch.zeros_like(labels)
        for c in sorted(pool, key=lambda c: score[c].item(), reverse=True)[:number]:
            M = M + (labels == c).long()
        masks.append(M)
    return torch.stack(masks)


def mix(foreground: Tensor, background: Tensor, paste_mask: Tensor) -> Tensor:
    """M x + (1 - M) y, image after image."""
    mixed = [M * x + (1 - M) * y for x, y, M in zip(foreground, background, paste_mask, strict=True)]
    return torch.stack(mixed)


def confidence_weights(confidence: Tensor, paste_mask: Tensor) -> Tensor:
    """1 on the paste, the share of confident pixels elsewhere: float (N, H, W)."""
    share = (confidence >= THRESHOLD).sum().item() / confidence.numel()
    return mix(torch.ones_like(confidence), share * torch.ones_like(confidence), paste_mask)


def rgb_to_hsv(image: Tensor) -> Tensor:
    """Hue, saturation and value in [0, 1] of one image (3, H, W) in [0, 1]."""
    red, green, blue = image
    value, lowest = image.max(dim=0).values, image.min(dim=0).values
    chroma = value - lowest
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    hue = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = torch.where(value == red, (green - blue) / divisor % 6, hue)
    saturation = torch.where(value == 0, torch.zeros_like(value), chroma / value.clamp(min=1e-12))
    return torch.stack([hue / 6, saturation, value])


def hsv_to_rgb(image: Tensor) -> Tensor:
    """The way back, sextant after sextant of the hue circle."""
    hue, saturation, value = image
    sextant = torch.floor(hue * 6)
    f = hue * 6 - sextant
    p, q, t = value * (1 - saturation), value * (1 - f * saturation), value * (1 - (1 - f) * saturation)
    rgb = torch.zeros_like(image)
    cases = ((value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q))
    for case, channels in enumerate(cases):
        rgb = torch.where(sextant % 6 == case, torch.stack(channels), rgb)
    return rgb


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Adds factor - 1."""
    return torch.clamp(image + (factor - 1), 0, 1)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Multiplies about zero."""
    return torch.clamp(image * factor, 0, 1)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiplies the saturation."""
    hue, saturation, value = rgb_to_hsv(image)
    return hsv_to_rgb(torch.stack([hue, torch.clamp(saturation * factor, 0, 1), value]))


def adjust_hue(image: Tensor, turns: float) -> Tensor:
    """Turns the hue."""
    hue, saturation, value = rgb_to_hsv(image)
    return hsv_to_rgb(torch.stack([(hue + turns) % 1, saturation, value]))


def color_jitter(image: Tensor, generator: torch.Generator, strength: float = 0.25) -> Tensor:
    """Four operations with drawn factors, in an order drawn for each image."""
    mean = image.new_tensor(MEAN).view(3, 1, 1)
    draws = torch.rand(8, len(image), generator=generator)
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    jittered = []
    for index, x in enumerate(image):
        spread = strength * (2 * draws[:4, index] - 1)
        factors = [1 + spread[0].item(), 1 + spread[1].item(), 1 + spread[2].item(), spread[3].item()]
        x = (x + mean) / 255
        for operation in draws[4:, index].argsort().tolist():
            x = operations[operation](x, factors[operation])
        jittered.append(x * 255 - mean)
    return torch.stack(jittered)


def kernel_size(length: int) -> int:
    """A tenth of the length, rounded up and made odd."""
    size = math.ceil(0.1 * length)
    return size if size % 2 else size - 1


def gaussian_blur(image: Tensor, generator: torch.Generator) -> Tensor:
    """Each image under its own dense Gaussian kernel, of a tenth of its height and width."""
    sigmas = 0.15 + torch.rand(len(image), generator=generator)
    sizes = [kernel_size(length) for length in image.shape[2:]]
    reach = [size // 2 for size in sizes]
    blurred = []
    for x, sigma in zip(image, sigmas, strict=True):
        rows, columns = (torch.exp(-((torch.arange(size) - size // 2) ** 2) / (2 * sigma**2)).float() for size in sizes)
        kernel = torch.outer(rows / rows.sum(), columns / columns.sum())
        padded = F.pad(x.unsqueeze(0), (reach[1], reach[1], reach[0], reach[0]), mode="reflect")
        blurred.append(F.conv2d(padded, kernel.expand(3, 1, *sizes), groups=3))
    return torch.cat(blurred)


def gaussian_blur_in_two_passes(image: Tensor, generator: torch.Generator) -> Tensor:
    """The same blur along the columns and then along the rows, of the whole batch at once, by kernels as long."""
    count, channels = image.shape[:2]
    sigmas = 0.15 + torch.rand(count, generator=generator)
    for dim, pad in ((2, (0, 0, 1, 1)), (3, (1, 1, 0, 0))):
        size = kernel_size(image.shape[dim])
        offsets = torch.arange(size) - size // 2
        kernels = torch.exp(-(offsets**2) / (2 * sigmas.view(-1, 1) ** 2))
        kernels = kernels / kernels.sum(dim=1, keepdim=True)
        padded = F.pad(image, [size // 2 * side for side in pad], mode="reflect")
        kernels = kernels.repeat_interleave(channels, dim=0).view(count * channels, 1, -1, 1)
        stacked = padded.reshape(1, count * channels, *padded.shape[2:])
        weights = kernels if dim == 2 else kernels.transpose(2, 3)
        image = F.conv2d(stacked, weights, groups=count * channels).view_as(image)
    return image


def strong_and_weak_views(
    image: Tensor, mask: Tensor, boxes: list[list[int]], size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """EHTDI's crops, their jittered form and the crops of their labels, by bytes of one image after the other.

    Args:
        image: Whole images, float in 0-255 minus mean.
        mask: Their labels.
        boxes: First row and column, height and width of the crop of each image.
        size: Side of the results.
        generator: Of the jitter.
    """
    weak, labels = [], []
    for x, y, (top, left, height, width) in zip(image, mask, boxes, strict=True):
        rgb = (x + x.new_tensor(MEAN).view(3, 1, 1)).permute(1, 2, 0).numpy().round().astype(np.uint8)
        crop = rgb[top : top + height, left : left + width]
        weak.append(cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR))
        crop = y.numpy().astype(np.uint8)[top : top + height, left : left + width]
        labels.append(cv2.resize(crop, (size, size), interpolation=cv2.INTER_NEAREST))

    strong, number = list(weak), len(weak)
    jittered = (torch.rand(number, generator=generator) < 0.8).nonzero().flatten().tolist()
    draws = 2 * torch.rand(5, len(jittered), generator=generator) - 1 if jittered else torch.zeros(5, 0)
    for index, (contrast, brightness, *shifts) in zip(jittered, draws.T.tolist(), strict=True):
        linear = strong[index].astype(np.float32) * (1 + 0.2 * contrast) + 255 * 0.2 * brightness
        strong[index] = shift_hsv(np.clip(linear, 0, 255).round().astype(np.uint8), *shifts)
    for index in (torch.rand(number, generator=generator) < 0.2).nonzero().flatten().tolist():
        strong[index] = cv2.cvtColor(cv2.cvtColor(strong[index], cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    blurred = (torch.rand(number, generator=generator) < 0.5).nonzero().flatten().tolist()
    odds = torch.tensor([1.0, 2.0])
    drawn = torch.multinomial(odds, len(blurred), replacement=True, generator=generator) if blurred else []
    for index, kernel in zip(blurred, drawn, strict=True):
        side = 3 if kernel == 0 else 5
        strong[index] = cv2.GaussianBlur(strong[index], (side, side), 0.3 * ((side - 1) / 2 - 1) + 0.8)

    views = (
        torch.stack([torch.from_numpy(x).permute(2, 0, 1).float() - torch.tensor(MEAN).view(3, 1, 1) for x in view])
        for view in (weak, strong)
    )
    return *views, torch.from_numpy(np.stack(labels)).long()


def shift_hsv(image: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    """Adds shares of 20, 30 and 20 to hue (of 180), saturation and value (of 255) of bytes (H, W, 3)."""
    parts = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    h, s, v = (part.astype(np.int16) for part in parts)
    h = (h + round(20 * hue)) % 180
    s = np.clip(s + round(30 * saturation), 0, 255)
    v = np.clip(v + round(20 * value), 0, 255)
    return cv2.cvtColor(cv2.merge([part.astype(np.uint8) for part in (h, s, v)]), cv2.COLOR_HSV2RGB)


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def pseudo_label(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Labels and confidence: upsampling, softmax, maximum."""
    probs = torch.softmax(upsample(logits, size), dim=1)
    confidence, labels = torch.max(probs, dim=1)
    return labels, confidence


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid pixels, whose logits (N, C, H, W) are gathered first, by a mask repeated over the classes.

    This is the form of the published programs; gathering whole pixels by `channels_last[valid]` takes a third of it.
    """
    channels_last = logits.permute(0, 2, 3, 1).contiguous()
    valid = mask != IGNORE_INDEX
    gathered = channels_last[valid.unsqueeze(3).expand_as(channels_last)].view(-1, logits.shape[1])
    return F.cross_entropy(gathered, mask[valid])


def weighted_cross_entropy(logits: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Mean over all pixels of the weighted losses; logits (N, C, H, W)."""
    losses = F.cross_entropy(logits, mask, ignore_index=IGNORE_INDEX, reduction="none")
    return torch.mean(losses * weights)


def ema_update(student: nn.Module, teacher: nn.Module, alpha: float) -> None:
    """One parameter after the other."""
    for theirs, mine in zip(student.parameters(), teacher.parameters(), strict=True):
        mine.data[:] = alpha * mine[:].data[:] + (1 - alpha) * theirs[:].data[:]


def mmd(x: Tensor, y: Tensor, num_kernels: int = 5, kernel_ratio: float = 2.0) -> Tensor:
    """Mean of the kernel within both samples minus that across them."""
    sample = torch.cat([x, y])
    total = len(sample)
    distances = ((sample.expand(total, *sample.shape) - sample.unsqueeze(1)) ** 2).sum(2)
    bandwidth = distances.detach().sum() / (total**2 - total) / kernel_ratio ** (num_kernels // 2)
    kernels = [torch.exp(-distances / (bandwidth * kernel_ratio**q)) for q in range(num_kernels)]
    kernel, n = sum(kernels), len(x)
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()


def feature_alignment(source: Tensor, target: Tensor, soft_mask: Tensor, weight: float = 0.005) -> Tensor:
    """MMD of the features upsampled, masked and averaged, and of their plain means."""
    size = (soft_mask.shape[-2], soft_mask.shape[-1])
    source_paste, target_paste = (
        (upsample(features, size) * soft_mask.unsqueeze(1)).mean(dim=(2, 3)) for features in (source, target)
    )
    whole = mmd(target.mean(dim=(2, 3)), source.mean(dim=(2, 3)))
    return weight * (mmd(target_paste, source_paste) + whole)


def dsp_mix(
    template: tuple[Tensor, Tensor],
    tail: tuple[Tensor, Tensor],
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    paste_mask: Tensor,
    beta: float,
) -> tuple[Tensor, ...]:
    """Long-tail classes over the template, and the composite softly over source and target.

    Every pair is images and labels; `tail` has k for each image, with 255 where nothing is to be pasted.

    Returns:
        Mixed source images and labels, mixed target images and labels, paste mask.
    """
    mixed: list[list[Tensor]] = [[], [], [], [], []]
    for b in range(len(paste_mask)):
        image, mask, M = template[0][b], template[1][b], paste_mask[b]
        for crop, labels in zip(tail[0][b], tail[1][b], strict=True):
            pasted = (labels != IGNORE_INDEX).long()
            image = pasted * crop + (1 - pasted) * image
            mask = pasted * labels + (1 - pasted) * mask
            M = ((M + pasted) > 0).long()
        soft = beta * M
        for place, (under, labels) in enumerate(((source[0][b], source[1][b]), (target[0][b], target[1][b]))):
            mixed[2 * place].append(soft * image + (1 - soft) * under)
            mixed[2 * place + 1].append(M * mask + (1 - M) * labels)
        mixed[4].append(M)
    return tuple(torch.stack(parts) for parts in mixed)


def dsp_losses(
    logits: tuple[Tensor, Tensor, Tensor],
    source_mask: Tensor,
    source_mixed_mask: Tensor,
    target_mixed_mask: Tensor,
    pseudo_labels: Tensor,
    confidence: Tensor,
    paste_mask: Tensor,
    beta: float,
) -> Tensor:
    """Five cross-entropies of low-resolution logits of clean source, mixed source and mixed target images."""
    size = (source_mask.shape[-2], source_mask.shape[-1])
    source, mixed_source, mixed_target = (upsample(z, size) for z in logits)
    share = (confidence >= THRESHOLD).sum().item() / confidence.numel()
    soft = beta * paste_mask
    return (
        cross_entropy(source, source_mask)
        + (1 - beta) * cross_entropy(mixed_source, source_mask)
        + beta * cross_entropy(mixed_source, source_mixed_mask)
        + weighted_cross_entropy(mixed_target, target_mixed_mask, soft)
        + weighted_cross_entropy(mixed_target, pseudo_labels, (1 - soft) * share)
    )


def dacs_losses(
    logits: tuple[Tensor, Tensor, Tensor],
    source: tuple[Tensor, Tensor],
    target_image: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A step of DACS whose three network passes have answered `logits` (source, teacher, mixed): loss and mixed image.

    The gates of jitter and blur are drawn, and open.
    """
    size = (target_image.shape[-2], target_image.shape[-1])
    image, mask = source
    loss_source = cross_entropy(upsample(logits[0], size), mask)
    pseudo_labels, confidence = pseudo_label(logits[1].detach(), size)
    paste_mask = class_mask(mask, generator)
    mixed_image = mix(image, target_image, paste_mask)
    torch.rand((), generator=generator)
    mixed_image = color_jitter(mixed_image, generator)
    torch.rand((), generator=generator)
    mixed_image = gaussian_blur(mixed_image, generator)
    mixed_mask = mix(mask, pseudo_labels, paste_mask)
    weights = confidence_weights(confidence, paste_mask)
    return loss_source + weighted_cross_entropy(upsample(logits[2], size), mixed_mask, weights), mixed_image


def keep_probabilities(logits: Tensor, size: tuple[int, int], path: Path) -> Tensor:
    """Probabilities at full size, written to a file and read again, as CBST's program keeps them between its passes."""
    np.save(path, torch.softmax(upsample(logits, size), dim=1).numpy())
    return torch.from_numpy(np.load(path))


def class_balanced_labels(probs: Tensor, portion: float) -> Tensor:
    """Labels of the largest p_c / t_c where it reaches 1, else void; t_c is reached by a portion of the pixels of c."""
    confidence, labels = torch.max(probs, dim=1)
    thresholds = []
    for c in range(probs.shape[1]):
        values = sorted(confidence[labels == c].tolist(), reverse=True)
        rank = int(portion * len(values))
        thresholds.append(values[rank - 1] if rank else math.inf)
    weighted, chosen = torch.max(probs / probs.new_tensor(thresholds).view(1, -1, 1, 1), dim=1)
    return torch.where(weighted >= 1, chosen, IGNORE_INDEX)


def fourier_translation(image: Tensor, style: Tensor, beta: float) -> Tensor:
    """FDA image after image: the whole spectra, centred, exchange the middle of their amplitudes; 0-255."""
    translated = []
    for source, target in zip(image, style, strict=True):
        spectrum, wanted = (torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1)) for x in (source, target))
        amplitude, phase = spectrum.abs(), spectrum.angle()
        height, width = image.shape[-2:]
        b = math.floor(min(height, width) * beta)
        rows, columns = (slice(n // 2 - b, n // 2 + b + 1) for n in (height, width))
        amplitude[:, rows, columns] = wanted.abs()[:, rows, columns]
        mixed = torch.fft.ifftshift(torch.polar(amplitude, phase), dim=(-2, -1))
        translated.append(torch.fft.ifft2(mixed).real)
    return torch.stack(translated)


def pixel_contrast(first: Tensor, second: Tensor, scale: float) -> Tensor:
    """PiCL with the whole matrix of similarities of each image, left to autograd."""
    total = first.new_zeros(())
    for one, other in zip(first, second, strict=True):
        probs = torch.cat([one.flatten(1).T.softmax(1), other.flatten(1).T.softmax(1)])
        count = len(probs) // 2
        similarity = probs @ probs.T
        similarity = similarity * (1 - torch.eye(2 * count)) - 1e5 * torch.eye(2 * count)
        positive = torch.arange(2 * count).roll(count)
        total = total + F.cross_entropy(scale * similarity, positive)
    return total / len(first)


def prototype_contrast(first: Tensor, second: Tensor, labels: Tensor, scale: float) -> Tensor:
    """ProCL class by class and image by image."""
    total = first.new_zeros(())
    for one, other, label in zip(first, second, labels, strict=True):
        probs = [
            torch.stack([view[:, label == c].mean(1).softmax(0) for c in label.unique() if c != 255])
            for view in (one, other)
        ]
        stacked = torch.cat(probs)
        count = len(probs[0])
        similarity = scale * stacked @ stacked.T
        similarity = similarity.masked_fill(torch.eye(2 * count, dtype=torch.bool), -1e5)
        total = total + F.cross_entropy(similarity, torch.arange(2 * count).roll(count))
    return total / len(first)


def confusion(predicted: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Counts (C, C) by truth and prediction, pixel by pixel."""
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    matrix = counts.numpy()
    for truth, found in zip(mask.flatten().numpy(), predicted.flatten().numpy(), strict=True):
        if truth < num_classes:
            matrix[truth, found] += 1
    return counts


def pull(
    features: tuple[Tensor, Tensor, Tensor],
    labels: Tensor,
    pseudo_labels: Tensor,
    confidence: Tensor,
    ranks: dict[int, tuple[Tensor, Tensor, Tensor]],
    weights: Tensor,
) -> Tensor:
    """The pull of T2S-DA class by class, of features (N, D, h, w): queries, source and target.

    What is drawn of each class's candidates is given as their numbers: queries, source negatives, target negatives.
    """
    queries, source, target = (F.normalize(x, dim=1).permute(0, 2, 3, 1) for x in features)
    raw = features[1].permute(0, 2, 3, 1)
    gamma = torch.quantile(confidence.flatten(), 0.5)
    total = queries.new_zeros(())
    for c in range(len(weights)):
        mask = labels == c
        if not mask.any():
            continue
        near = source[(labels != c) & (labels != IGNORE_INDEX)]
        far = target[(pseudo_labels != c) & (confidence < gamma)]
        query, chosen_near, chosen_far = ranks[c]
        q = queries[mask][query]
        negatives = torch.cat([near[chosen_near], far[chosen_far]])
        positive = F.normalize(raw[mask].mean(dim=0), dim=0)
        logits = torch.cat([(q * positive).sum(dim=1, keepdim=True), q @ negatives.T], dim=1) / 0.2
        total = total + weights[c] * F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
    return total
