"""Records of a request and its rows, one definition each: impression, click, prediction, access, exposure, outcome.

A record is a table, so its definition is the columns; events that arrive one by one are typed models too. The columns of a served
row keep the names of the prediction log, which start with ``log_`` so that they do not clash with fields of a model.
"""
