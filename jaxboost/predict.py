"""python -m jaxboost.predict: another name of the command `jaxboost predict`."""

from jaxboost.cli import predict

if __name__ == "__main__":
    predict.run()
