"""The command `jaxboost` and its subcommands, one module each."""
