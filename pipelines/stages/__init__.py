"""One module per DVC stage, with the name of the stage."""
