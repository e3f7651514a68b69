"""python -m jaxboost: the command `jaxboost`."""

from jaxboost.cli.main import main

if __name__ == "__main__":
    main()
