"""The laws: batteries that run on everything that the catalogue lists."""
