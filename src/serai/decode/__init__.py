"""Opening pictures, sound and video from outside, in a child process that can do nothing else.

`serai.decode.decoder.Decoder` is the way in. This file imports nothing, so that the child carries
nothing that it does not need.
"""
