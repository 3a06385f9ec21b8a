"""Reading data set folders and image data sets of others."""
