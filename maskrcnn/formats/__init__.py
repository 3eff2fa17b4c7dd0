"""COCO JSON, GeoParquet, GeoJSON and GeoPackage."""
