"""Where photographs and their scores come from: one importer per source."""
