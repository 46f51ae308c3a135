package lambda

import (
	"net/http"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
	"github.com/volley-run/volley/sophon/controller"
)

// concurrency is AWS's Concurrency.
type concurrency struct{ ReservedConcurrentExecutions int }

// reserved returns the reserved concurrency, nil if there is none.
func reserved(f *function.Function) *concurrency {
	if f.ReservedConcurrency == nil {
		return nil
	}
	return &concurrency{*f.ReservedConcurrency}
}

func (h *Handler) putConcurrency(c *call) error {
	var in struct{ ReservedConcurrentExecutions *int }
	if err := awshttp.Decode(c.body, &in); err != nil {
		return err
	}
	if in.ReservedConcurrentExecutions == nil {
		return unsupported("ReservedConcurrentExecutions", "it is missing")
	}
	if err := h.platform.PutReservedConcurrency(c.ctx(), c.name, *in.ReservedConcurrentExecutions); err != nil {
		return err
	}
	return c.json(http.StatusOK, concurrency{*in.ReservedConcurrentExecutions})
}

func (h *Handler) getConcurrency(c *call) error {
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	if r := reserved(&f); r != nil {
		return c.json(http.StatusOK, r)
	}
	return c.json(http.StatusOK, struct{}{})
}

func (h *Handler) deleteConcurrency(c *call) error {
	if err := h.platform.DeleteReservedConcurrency(c.ctx(), c.name); err != nil {
		return err
	}
	return c.empty()
}

// provisioned is what AWS's operations on provisioned concurrency return.
type provisioned struct {
	FunctionArn                              string `json:",omitempty"`
	RequestedProvisionedConcurrentExecutions int
	AvailableProvisionedConcurrentExecutions int
	AllocatedProvisionedConcurrentExecutions int
	Status                                   string
	StatusReason                             string `json:",omitempty"`
}

func describeProvisioned(p *controller.Provisioned) provisioned {
	out := provisioned{
		RequestedProvisionedConcurrentExecutions: p.Requested,
		AvailableProvisionedConcurrentExecutions: p.Available,
		AllocatedProvisionedConcurrentExecutions: p.Available,
		Status:                                   "IN_PROGRESS",
		StatusReason:                             p.Problem,
	}
	if p.Available >= p.Requested {
		out.Status = "READY"
	}
	return out
}

// checkQualifier wants the qualifier that AWS's clients must give. AWS itself
// refuses $LATEST, which is the only one here.
func checkQualifier(c *call) error {
	if c.qualifier == "" {
		return unsupported("Qualifier", "it is missing: use $LATEST")
	}
	return nil
}

func (h *Handler) putProvisioned(c *call) error {
	if err := checkQualifier(c); err != nil {
		return err
	}
	var in struct{ ProvisionedConcurrentExecutions int }
	if err := awshttp.Decode(c.body, &in); err != nil {
		return err
	}
	if in.ProvisionedConcurrentExecutions < 1 {
		return unsupported("ProvisionedConcurrentExecutions", "use 1 or more; DeleteProvisionedConcurrencyConfig takes it away")
	}
	p, err := h.platform.PutProvisionedConcurrency(c.ctx(), c.name, in.ProvisionedConcurrentExecutions)
	if err != nil {
		return err
	}
	return c.json(http.StatusAccepted, describeProvisioned(&p))
}

func (h *Handler) getProvisioned(c *call) error {
	if c.query("List") == "ALL" {
		return h.listProvisioned(c)
	}
	if err := checkQualifier(c); err != nil {
		return err
	}
	p, err := h.findProvisioned(c)
	if err != nil {
		return err
	}
	if p == nil {
		return awshttp.NewError(awshttp.ProvisionedNotFound, "No Provisioned Concurrency Config found for this function")
	}
	return c.json(http.StatusOK, describeProvisioned(p))
}

// findProvisioned returns nil for a function that has none.
func (h *Handler) findProvisioned(c *call) (*controller.Provisioned, error) {
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil || f.ProvisionedConcurrency == 0 {
		return nil, err
	}
	p, err := h.platform.GetProvisionedConcurrency(c.ctx(), c.name)
	if err != nil {
		return nil, err
	}
	return &p, nil
}

// listProvisioned lists the only one that a function can have.
func (h *Handler) listProvisioned(c *call) error {
	list := []provisioned{}
	p, err := h.findProvisioned(c)
	if err != nil {
		return err
	}
	if p != nil {
		d := describeProvisioned(p)
		d.FunctionArn = function.ARN(c.name) + ":" + function.LatestVersion
		list = append(list, d)
	}
	return c.json(http.StatusOK, struct{ ProvisionedConcurrencyConfigs []provisioned }{list})
}

func (h *Handler) deleteProvisioned(c *call) error {
	if err := checkQualifier(c); err != nil {
		return err
	}
	if err := h.platform.DeleteProvisionedConcurrency(c.ctx(), c.name); err != nil {
		return err
	}
	return c.empty()
}

// accountSettings tells the limits and the use of the whole platform.
func (h *Handler) accountSettings(c *call) error {
	type limit struct {
		CodeSizeUnzipped               int64
		CodeSizeZipped                 int64
		ConcurrentExecutions           int
		UnreservedConcurrentExecutions int
	}
	type usage struct{ TotalCodeSize, FunctionCount int64 }
	out := struct {
		AccountLimit limit
		AccountUsage usage
	}{}
	list, _, err := h.platform.ListFunctions(c.ctx(), "", 0)
	if err != nil {
		return err
	}
	for i := range list {
		out.AccountUsage.FunctionCount++
		out.AccountUsage.TotalCodeSize += list[i].Code.SizeBytes
	}
	total, unreserved := h.platform.Concurrency()
	out.AccountLimit = limit{
		CodeSizeUnzipped: 250 << 20, CodeSizeZipped: 50 << 20,
		ConcurrentExecutions: total, UnreservedConcurrentExecutions: unreserved,
	}
	return c.json(http.StatusOK, out)
}
