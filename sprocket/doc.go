// Package sprocket turns a pipeline specification and its video inputs into a
// plan of parallel tasks: it is the part of the Sprocket video framework
// (thesis chapter 2) that decides and does no I/O.
//
// A pipespec (Spec, ParseSpec, Validate) names stages and the streams between
// them. What flows on a stream is an Item: a chunk of compressed video, a batch
// of frames, a set of images. A Catalog says which stages exist and what their
// ports and parameters are. BuildPlan makes the physical plan: consecutive
// one-to-one stages fused into one Node, and the chunk grid on which the
// inputs are cut.
//
// The packages below it carry the plan out: coordinator (control plane),
// worker and stage (what a worker does), delivery (which items make a task),
// media (containers, codecs, manifests), platform (where workers run) and job
// (all of it together).
package sprocket
