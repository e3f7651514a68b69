"""Converts pretrained weights: python convert_weights.py --source SOURCE --layers all --out FOLDER.

The same as `jaxboost convert`.
"""

from jaxboost.cli import convert

if __name__ == "__main__":
    convert.run()
