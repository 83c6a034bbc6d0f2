"""The model of a run: loaded, isolated per document, with its head on the labelled positions.

loading -> isolation -> pretraining -> (loss, correct)
              |             |-- labelled_head      the head, at positions with labels
              |             '-- packed_attention   documents that do not see each other
              '-- positions                        the range of position ids
"""
