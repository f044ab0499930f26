from lightning_uda.data.datasets.minicity.dataset import MiniCity

__all__ = ["MiniCity"]
