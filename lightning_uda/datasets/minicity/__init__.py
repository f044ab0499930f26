from lightning_uda.datasets.minicity.dataset import MiniCity

__all__ = ["MiniCity"]
