"""The operator's own objects in the application's database: optional, recognisable, and gone when their option is off."""
