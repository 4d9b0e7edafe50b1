"""A fuzzer of all borders of the package: what people bring is read right, or refused by name. See `__main__`."""
