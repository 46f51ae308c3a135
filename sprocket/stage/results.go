package stage

import (
	"fmt"

	"github.com/volley-run/volley/store"
)

// resultStore is where the node's chunks and images go: the output if the node
// ends the pipeline, else the store between stages.
func (t *ffmpegTask) resultStore() store.Store { return t.role.resultStore(t.env) }

func (t *ffmpegTask) resultKey(name string) string { return t.role.resultKey(name) }

func (r Role) resultStore(env Env) store.Store {
	if r.Node.OutputIndex >= 0 {
		return env.Output
	}
	return env.Work
}

func (r Role) resultKey(name string) string {
	if r.Node.OutputIndex >= 0 {
		return r.OutputPrefix + name
	}
	return fmt.Sprintf("results/%s/%s", r.Node.Name, name)
}
