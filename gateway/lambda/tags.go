package lambda

import (
	"maps"
	"net/http"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
)

func (h *Handler) listTags(c *call) error {
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	tags := f.Tags
	if tags == nil {
		tags = map[string]string{}
	}
	return c.json(http.StatusOK, struct{ Tags map[string]string }{tags})
}

func (h *Handler) tag(c *call) error {
	var in struct{ Tags map[string]string }
	if err := awshttp.Decode(c.body, &in); err != nil {
		return err
	}
	if len(in.Tags) == 0 {
		return unsupported("Tags", "give at least one")
	}
	return h.setTags(c, func(tags map[string]string) { maps.Copy(tags, in.Tags) })
}

func (h *Handler) untag(c *call) error {
	keys := c.r.URL.Query()["tagKeys"]
	if len(keys) == 0 {
		return unsupported("TagKeys", "give at least one")
	}
	return h.setTags(c, func(tags map[string]string) {
		for _, key := range keys {
			delete(tags, key)
		}
	})
}

// setTags changes the tags, and with them the function's network, which the
// Lambda API has no field for.
func (h *Handler) setTags(c *call, change func(tags map[string]string)) error {
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	tags := maps.Clone(f.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	change(tags)
	network, err := networkOf(tags)
	if err != nil {
		return err
	}
	if err := h.platform.SetTags(c.ctx(), c.name, change); err != nil {
		return err
	}
	if network != f.Network {
		_, err := h.platform.UpdateConfiguration(c.ctx(), c.name, "", func(f *function.Function) { f.Network = network })
		if err != nil {
			return err
		}
	}
	return c.empty()
}

// networkOf returns the network that tags ask for.
func networkOf(tags map[string]string) (function.Network, error) {
	network := function.Network(tags[function.NetworkTag])
	if network == "" {
		return function.NetworkNone, nil
	}
	if !network.Valid() {
		return "", unsupported("Tags", function.NetworkTag+" is neither none nor host nor net: and a network's name")
	}
	return network, nil
}
