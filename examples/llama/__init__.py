"""A byte-level Llama in ``flax.nnx``, in small files along its stages.

config      sizes and presets
data        the Python standard library's sources, as bytes
ops         the operations that a kernel can serve: rotary embedding and the attention calls
model       the network
cache       the key/value cache of generation
training    loss, optimizer, one step
decoding    prefill and the jitted decode loop
paged       the paged store, and one step of continuous batching
scheduler   which requests' tokens a step computes, and in which pages
serving     the engine: the scheduler's steps on the device
console     what a serving run shows
checkpoint  safetensors in and out, under the names of a Hugging Face Llama
awq         four-bit layers in AWQ's words
hub         quantised folders of the hub
tokens      text to token ids and back
paged_decoding  prompts, and the decode loop in one call, on paged stores
"""
