"""A training step of a network as it is and with `FastDepthwise`, on a CPU: `python benchmarks/depthwise.py`.

Forward and backward pass of timm's networks at output stride 8, batch of 4, 120 x 160, one thread. Both take the same
weights and images, in turn; times are CPU times, medians over the rounds, the ratio is the median of the paired ratios.
"""

import argparse
import copy

import timm
import torch
from measure import interleaved

from lightning_uda.networks.depthwise import hasten_depthwise


def main():
    """Prints a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["tf_efficientnet_lite0", "mobilenetv3_large_100"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.rand(4, 3, 120, 160)
    for name in options.networks:
        plain = timm.create_model(name, features_only=True, output_stride=8, out_indices=(-1,))
        fast = copy.deepcopy(plain)
        changed = hasten_depthwise(fast)

        def step(network):
            network.zero_grad()
            network(images)[0].square().sum().backward()

        steps = [lambda network=network: step(network) for network in (plain, fast)]
        for warm_up in steps:
            warm_up()
        slow, quick, ratio = interleaved(*steps, options.rounds)
        print(f"{name}: {changed} convolutions changed, {slow:.0f} ms -> {quick:.0f} ms, {ratio:.1f}x")


if __name__ == "__main__":
    main()
