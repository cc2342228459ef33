"""Coverage-guided fuzzing of the PROXY protocol's parser, by itself and beside other parsers: `python -m fuzz`."""
