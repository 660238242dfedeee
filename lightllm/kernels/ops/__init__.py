"""The contracts: what each op computes, with shapes and dtypes. Implementations live beside this package."""
