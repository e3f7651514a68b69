"""python -m jaxboost.predict: the same as the command `jaxboost predict`."""

from jaxboost.cli import predict

if __name__ == "__main__":
    predict.run()
