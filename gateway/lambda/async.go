package lambda

import (
	"net/http"
	"strings"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
)

// eventConfig is AWS's FunctionEventInvokeConfig.
type eventConfig struct {
	LastModified             float64 // seconds since 1970
	FunctionArn              string
	MaximumRetryAttempts     int
	MaximumEventAgeInSeconds int
	DestinationConfig        destinations
}

type destinations struct{ OnSuccess, OnFailure destination }

type destination struct {
	Destination string `json:",omitempty"`
}

// eventSettings is what requests set of it. What is nil was not given.
type eventSettings struct {
	MaximumRetryAttempts     *int
	MaximumEventAgeInSeconds *int
	DestinationConfig        *struct{ OnSuccess, OnFailure *destination }
}

// apply changes a as the settings say.
func (s *eventSettings) apply(a *function.AsyncConfig) error {
	set(&a.MaxRetries, s.MaximumRetryAttempts)
	if s.MaximumEventAgeInSeconds != nil {
		a.MaxAge = time.Duration(*s.MaximumEventAgeInSeconds) * time.Second
		if a.MaxAge == 0 {
			return unsupported("MaximumEventAgeInSeconds", "0 is out of range: use 60 to 21600")
		}
	}
	if s.DestinationConfig == nil {
		return nil
	}
	for _, d := range []struct {
		from  *destination
		to    *string
		field string
	}{
		{s.DestinationConfig.OnSuccess, &a.OnSuccess, "DestinationConfig.OnSuccess"},
		{s.DestinationConfig.OnFailure, &a.OnFailure, "DestinationConfig.OnFailure"},
	} {
		if d.from == nil {
			continue
		}
		name, err := destinationName(d.from.Destination, d.field)
		if err != nil {
			return err
		}
		*d.to = name
	}
	return nil
}

// destinationName returns the name of the function that an ARN names.
func destinationName(arn, field string) (string, error) {
	if arn == "" {
		return "", nil
	}
	if !strings.Contains(arn, ":lambda:") {
		return "", unsupported(field, quote(arn)+" is no function: only functions can be destinations here")
	}
	t, err := parseTarget(arn, "")
	if err != nil {
		return "", unsupported(field, quote(arn)+" is not the ARN of a function of this platform")
	}
	return t.name, nil
}

func destinationARN(name string) destination {
	if name == "" {
		return destination{}
	}
	return destination{function.ARN(name)}
}

func describeAsync(t target, a function.AsyncConfig) eventConfig {
	return eventConfig{
		LastModified: float64(a.Modified.UnixMilli()) / 1000,
		// AWS qualifies the ARN always.
		FunctionArn:          function.ARN(t.name) + ":" + function.LatestVersion,
		MaximumRetryAttempts: a.MaxRetries, MaximumEventAgeInSeconds: int(a.MaxAge / time.Second),
		DestinationConfig: destinations{destinationARN(a.OnSuccess), destinationARN(a.OnFailure)},
	}
}

// putEventConfig sets all; what is not given is the default.
func (h *Handler) putEventConfig(c *call) error {
	return h.setEventConfig(c, function.AsyncConfig{MaxRetries: function.MaxAsyncRetries, MaxAge: function.MaxAsyncAge})
}

// updateEventConfig changes what is given.
func (h *Handler) updateEventConfig(c *call) error {
	a, err := h.platform.GetAsyncConfig(c.ctx(), c.name)
	if err != nil {
		return err
	}
	return h.setEventConfig(c, a)
}

func (h *Handler) setEventConfig(c *call, a function.AsyncConfig) error {
	var in eventSettings
	if err := awshttp.Decode(c.body, &in); err != nil {
		return err
	}
	if err := in.apply(&a); err != nil {
		return err
	}
	a, err := h.platform.PutAsyncConfig(c.ctx(), c.name, a)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, describeAsync(c.target, a))
}

func (h *Handler) getEventConfig(c *call) error {
	a, err := h.platform.GetAsyncConfig(c.ctx(), c.name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, describeAsync(c.target, a))
}

func (h *Handler) deleteEventConfig(c *call) error {
	if _, err := h.platform.GetAsyncConfig(c.ctx(), c.name); err != nil {
		return err
	}
	if err := h.platform.DeleteAsyncConfig(c.ctx(), c.name); err != nil {
		return err
	}
	return c.empty()
}

// listEventConfigs lists the only one that a function can have.
func (h *Handler) listEventConfigs(c *call) error {
	if c.item != "list" {
		return unknownOperation(c)
	}
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	list := []eventConfig{}
	if !f.Async.Modified.IsZero() {
		list = append(list, describeAsync(c.target, f.Async))
	}
	return c.json(http.StatusOK, struct{ FunctionEventInvokeConfigs []eventConfig }{list})
}
