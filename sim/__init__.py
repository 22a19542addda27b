"""The simulator: parameters moved along update paths on skills whose Fisher matrix is exact, all in float64."""
