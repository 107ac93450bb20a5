"""Scripts that run a bundle without autoft or torch; copied into bundles as they are, and used by training itself."""
