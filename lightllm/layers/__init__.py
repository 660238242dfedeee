"""What a decoder is built of: linear, embedding, norm, rotary angles, attention, feed-forward."""
