"""What files say of themselves, read from headers alone: no tensor library is imported here.

The ground floor uses these to refuse early, the upper floors to find each tensor's bytes by offset.
"""
