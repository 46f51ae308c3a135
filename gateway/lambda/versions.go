package lambda

import (
	"net/http"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
)

// listVersions lists the only version that there is.
func (h *Handler) listVersions(c *call) error {
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, struct{ Versions []configuration }{
		[]configuration{describe(&f, target{f.Name, function.LatestVersion})},
	})
}

// publishVersion refuses: a version that does not stay what it is would be
// worse than none.
func (h *Handler) publishVersion(c *call) error {
	if _, err := h.platform.GetFunction(c.ctx(), c.name); err != nil {
		return err
	}
	return awshttp.NewError(awshttp.InvalidParameterValue,
		"functions have the version $LATEST only: publish under another function name instead, or leave Publish out")
}

func (h *Handler) listAliases(c *call) error {
	if _, err := h.platform.GetFunction(c.ctx(), c.name); err != nil {
		return err
	}
	return c.json(http.StatusOK, struct{ Aliases []struct{} }{[]struct{}{}})
}

// getAlias knows the name $LATEST, which AWS does not take for an alias but
// which is one in what it does.
func (h *Handler) getAlias(c *call) error {
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	arn := function.ARN(f.Name) + ":" + c.item
	if c.item != function.LatestVersion {
		return awshttp.NewError(awshttp.ResourceNotFound, "Cannot find alias arn: "+arn)
	}
	return c.json(http.StatusOK, struct{ AliasArn, Name, FunctionVersion, Description, RevisionId string }{
		arn, c.item, function.LatestVersion, "", f.Revision,
	})
}

// getPolicy says that a function has no policy: every key may do everything.
func (h *Handler) getPolicy(c *call) error {
	if _, err := h.platform.GetFunction(c.ctx(), c.name); err != nil {
		return err
	}
	return awshttp.NewError(awshttp.ResourceNotFound, "The resource you requested does not exist.")
}
