package lambda

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
	"github.com/volley-run/volley/internal/sigv4"
	"github.com/volley-run/volley/sophon/controller"
	"github.com/volley-run/volley/store"
)

const (
	// downloadTime is how long the address of a package is valid.
	downloadTime = 10 * time.Minute
	// maxListItems is how many functions one page has at most, as AWS has it.
	maxListItems = 50
)

// code is AWS's FunctionCode, and the part of UpdateFunctionCode that is the
// same.
type code struct {
	ZipFile         []byte
	S3Bucket        string
	S3Key           string
	S3ObjectVersion string
	ImageURI        string `json:"ImageUri"`
}

// open returns the package that the code names, for a function of a package
// type; the caller closes it. Beyond what AWS knows, an object in a bucket can
// also be an image, as a tar.
func (h *Handler) open(c *call, from code, kind function.PackageType) (controller.Package, io.Closer, error) {
	nothing := io.NopCloser(nil)
	given := 0
	for _, is := range []bool{len(from.ZipFile) > 0, from.S3Bucket != "" || from.S3Key != "", from.ImageURI != ""} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return controller.Package{}, nothing, unsupported("Code", "give one of ZipFile, S3Bucket with S3Key, and ImageUri")
	case from.ImageURI != "":
		return controller.Package{ImageRef: from.ImageURI}, nothing, nil
	case len(from.ZipFile) > 0:
		return controller.Package{Zip: bytes.NewReader(from.ZipFile)}, nothing, nil
	case h.uploads == nil:
		return controller.Package{}, nothing, unsupported("Code", "there is no object store here to read S3Bucket from: use ZipFile")
	case from.S3Bucket == "" || from.S3Key == "":
		return controller.Package{}, nothing, unsupported("Code", "S3Bucket and S3Key belong together")
	case from.S3ObjectVersion != "":
		return controller.Package{}, nothing, unsupported("Code", "S3ObjectVersion: objects have no versions here: leave it out")
	}
	object, err := h.uploads.Open(c.ctx(), from.S3Bucket, from.S3Key)
	switch {
	case errors.Is(err, store.ErrNotFound), function.CodeOf(err) == function.NotFound:
		return controller.Package{}, nothing, unsupported("Code", "there is no object s3://"+from.S3Bucket+"/"+from.S3Key)
	case err != nil:
		return controller.Package{}, nothing, fmt.Errorf("open package: %w", err)
	}
	if kind == function.Image {
		return controller.Package{ImageTar: object}, object, nil
	}
	return controller.Package{Zip: object}, object, nil
}

// badPackage tells the client who sends a package that it is at fault: the
// name which the platform's error has by itself is for those who invoke.
func badPackage(err error) error {
	if bad, ok := errors.AsType[*function.Error](err); ok && (bad.Code == function.InvalidCode || bad.Code == function.TooLarge) {
		return &function.Error{Code: function.InvalidParameter, Field: "code", Message: bad.Message}
	}
	return err
}

func (h *Handler) createFunction(c *call) error {
	var in struct {
		settings
		FunctionName         string
		PackageType          string
		Code                 code
		Tags                 map[string]string
		Architectures        []string
		CodeSigningConfigArn string
	}
	if err := awshttp.Decode(c.body, &in); err != nil {
		return err
	}
	t, err := parseTarget(in.FunctionName, "")
	if err != nil {
		return err
	}
	for _, err := range []error{in.check(), in.checkZeros(), checkArchitectures(in.Architectures)} {
		if err != nil {
			return err
		}
	}
	if in.CodeSigningConfigArn != "" {
		return unsupported("CodeSigningConfigArn", "code is not signed here: leave it out")
	}
	f := function.Function{Name: t.name, PackageType: function.PackageType(in.PackageType), Tags: in.Tags}
	if f.PackageType == "" && in.Code.ImageURI != "" {
		f.PackageType = function.Image
	}
	in.apply(&f)
	if f.Network, err = networkOf(in.Tags); err != nil {
		return err
	}
	f.SetDefaults()
	if err := f.Validate(); err != nil { // before a package is fetched
		return err
	}
	p, closer, err := h.open(c, in.Code, f.PackageType)
	if err != nil {
		return err
	}
	defer closer.Close()
	made, err := h.platform.CreateFunction(c.ctx(), f, p)
	if err != nil {
		return badPackage(err)
	}
	return c.json(http.StatusCreated, describe(&made, target{name: made.Name}))
}

func (h *Handler) getFunction(c *call) error {
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	type location struct {
		RepositoryType   string
		Location         string `json:",omitempty"`
		ImageURI         string `json:"ImageUri,omitempty"`
		ResolvedImageURI string `json:"ResolvedImageUri,omitempty"`
	}
	out := struct {
		Configuration configuration
		Code          location
		Tags          map[string]string `json:",omitempty"`
		Concurrency   *concurrency      `json:",omitempty"`
	}{Configuration: describe(&f, c.target), Tags: f.Tags, Concurrency: reserved(&f)}
	out.Code = location{RepositoryType: "ECR", ImageURI: f.Code.ImageRef, ResolvedImageURI: f.Code.ResolvedRef}
	if f.Code.Object != "" {
		out.Code.RepositoryType = "S3"
		if out.Code.Location, err = h.codeAddress(c, f.Name); err != nil {
			return err
		}
	}
	return c.json(http.StatusOK, out)
}

// codeAddress returns an address where a function's package can be downloaded
// for a while, without further authentication.
func (h *Handler) codeAddress(c *call, name string) (string, error) {
	secret, ok := h.keys.Secret(c.claim.AccessKey)
	if !ok {
		return "", awshttp.NewError(awshttp.UnrecognizedClient, "the access key has been removed")
	}
	u := url.URL{Scheme: "http", Host: c.r.Host, Path: "/" + v2015 + "/functions/" + name + "/code"}
	if c.r.TLS != nil {
		u.Scheme = "https"
	}
	address, err := sigv4.PresignGet(u.String(), sigv4.Key{ID: c.claim.AccessKey, Secret: secret},
		sigv4.Scope{Service: awshttp.SigningService, Region: function.Region, Now: h.now()}, downloadTime)
	if err != nil {
		return "", fmt.Errorf("make address of package: %w", err)
	}
	return address, nil
}

// downloadCode serves the address that codeAddress makes.
func (h *Handler) downloadCode(c *call) error {
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	content, err := h.platform.Code(c.ctx(), c.name)
	if err != nil {
		return err
	}
	defer content.Close()
	kind, extension := "application/zip", ".zip"
	if f.PackageType == function.Image {
		kind, extension = "application/x-tar", ".tar"
	}
	c.w.Header().Set("Content-Type", kind)
	c.w.Header().Set("Content-Disposition", `attachment; filename="`+f.Name+extension+`"`)
	if _, err := io.Copy(c.w, content); err != nil {
		panic(http.ErrAbortHandler) // the client must not take what it has for the whole
	}
	return nil
}

func (h *Handler) getConfiguration(c *call) error {
	f, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, describe(&f, c.target))
}

func (h *Handler) listFunctions(c *call) error {
	limit, err := maxItems(c, maxListItems)
	if err != nil {
		return err
	}
	if v := c.query("FunctionVersion"); v != "" && v != "ALL" {
		return unsupported("FunctionVersion", quote(v)+" is unknown: use ALL, or leave it out")
	}
	list, next, err := h.platform.ListFunctions(c.ctx(), c.query("Marker"), limit)
	if err != nil {
		return err
	}
	out := struct {
		Functions  []configuration
		NextMarker string `json:",omitempty"`
	}{make([]configuration, len(list)), next}
	for i := range list {
		out.Functions[i] = describe(&list[i], target{name: list[i].Name})
	}
	return c.json(http.StatusOK, out)
}

// maxItems returns the length of a page, which is at most most.
func maxItems(c *call, most int) (int, error) {
	given := c.query("MaxItems")
	if given == "" {
		return most, nil
	}
	n, err := strconv.Atoi(given)
	if err != nil || n < 1 || n > 10_000 {
		return 0, unsupported("MaxItems", quote(given)+" is out of range: use 1 to 10000")
	}
	return min(n, most), nil
}

func (h *Handler) updateCode(c *call) error {
	var in struct {
		code
		RevisionID    string `json:"RevisionId"`
		Architectures []string
		DryRun        bool
	}
	if err := awshttp.Decode(c.body, &in); err != nil {
		return err
	}
	if err := checkArchitectures(in.Architectures); err != nil {
		return err
	}
	have, err := h.platform.GetFunction(c.ctx(), c.name)
	if err != nil {
		return err
	}
	if in.DryRun {
		return h.tryCode(c, &have, in.code, in.RevisionID)
	}
	p, closer, err := h.open(c, in.code, have.PackageType)
	if err != nil {
		return err
	}
	defer closer.Close()
	f, err := h.platform.UpdateCode(c.ctx(), c.name, in.RevisionID, p)
	if err != nil {
		return badPackage(err)
	}
	return c.json(http.StatusOK, describe(&f, c.target))
}

// tryCode checks what can be checked of new code without storing it.
func (h *Handler) tryCode(c *call, f *function.Function, from code, revision string) error {
	if revision != "" && revision != f.Revision {
		return awshttp.NewError(awshttp.PreconditionFailed,
			"The RevisionId provided does not match the latest RevisionId. Call the GetFunction API to retrieve the latest RevisionId")
	}
	_, closer, err := h.open(c, from, f.PackageType)
	if err != nil {
		return err
	}
	defer closer.Close()
	if f.PackageType == function.Zip && from.ImageURI != "" || f.PackageType == function.Image && len(from.ZipFile) > 0 {
		return unsupported("Code", "it is not of the function's package type, "+string(f.PackageType))
	}
	if len(from.ZipFile) > 0 {
		if err := tryZip(from.ZipFile); err != nil {
			return err
		}
	}
	return c.json(http.StatusOK, describe(f, c.target))
}

// tryZip refuses bytes that are no zip file.
func tryZip(text []byte) error {
	if _, err := zip.NewReader(bytes.NewReader(text), int64(len(text))); err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return unsupported("Code", "Could not unzip uploaded file: "+err.Error())
	}
	return nil
}

func (h *Handler) updateConfiguration(c *call) error {
	var in struct {
		settings
		RevisionID string `json:"RevisionId"`
	}
	if err := awshttp.Decode(c.body, &in); err != nil {
		return err
	}
	for _, err := range []error{in.check(), in.checkZeros()} {
		if err != nil {
			return err
		}
	}
	f, err := h.platform.UpdateConfiguration(c.ctx(), c.name, in.RevisionID, in.apply)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, describe(&f, c.target))
}

func (h *Handler) deleteFunction(c *call) error {
	if c.qualifier != "" {
		return unsupported("Qualifier", "$LATEST version cannot be deleted without deleting the function.")
	}
	if err := h.platform.DeleteFunction(c.ctx(), c.name); err != nil {
		return err
	}
	return c.empty()
}
