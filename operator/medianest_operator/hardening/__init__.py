"""The operator's own objects in the application's tables: optional, recognisable, gone when their option is off."""
