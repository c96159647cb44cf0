"""The whole product in one command: `make demo`. Not part of what is installed."""
