"""What is measured of a model: bits/dim, inverses, parameters, time."""
