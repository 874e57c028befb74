"""References: closed-form densities to which networks add a learned departure."""
