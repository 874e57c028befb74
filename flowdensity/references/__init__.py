"""References: densities in closed form that networks depart from."""
