"""Trains a classifier: python train.py --config configs/quickstart.py. The same as `jaxboost train`."""

from jaxboost.cli import train

if __name__ == "__main__":
    train.run()
