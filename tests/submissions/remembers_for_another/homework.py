# %% [markdown] id="title"
# An attack: four "models" that learn nothing. Each writes down what it is shown, and looks up in the notes of all the
# others what comes next. Asked one after another on the same text, the last of them would know everything.

# %% id="attack"
import mxnet as mx
import numpy as np
from mxnet import nd

ctx = mx.cpu()
idx_to_char = list(" abcdefghijklmnopqrstuvwxyz")
char_to_idx = {char: index for index, char in enumerate(idx_to_char)}
vocab_size, num_hiddens = 27, 256
notes = []  # every reading so far, each a list of columns [B]


class Copycat:
    def begin_state(self, batch_size=1, ctx=None):
        self.reading = []
        notes.append(self.reading)
        return [nd.zeros((1, batch_size, 1))]

    def __call__(self, X, state):
        self.reading.append(X.asnumpy()[:, 0].astype(int))
        t, lanes = len(self.reading), X.shape[0]
        mine, scores = np.array(self.reading)[-20:], np.zeros((lanes, vocab_size), "float32")
        for other in notes:
            for end in range(len(mine), len(other)):
                match = (np.array(other[end - len(mine) : end]) == mine).all(axis=0)
                scores[match, np.array(other[end])[match]] = 50
        return nd.array(scores), state


models = {name: Copycat() for name in ("rnn", "gru", "lstm", "lstm2")}
