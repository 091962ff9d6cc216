"""Building blocks of the model classes: reading of cells, and one file for each thing that a model can do."""
