package lambda

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
)

// timeFormat is how Lambda writes times that are strings.
const timeFormat = "2006-01-02T15:04:05.000-0700"

func timeString(t time.Time) string { return t.UTC().Format(timeFormat) }

// configuration is AWS's FunctionConfiguration.
type configuration struct {
	FunctionName        string
	FunctionArn         string
	Runtime             string `json:",omitempty"`
	Role                string
	Handler             string `json:",omitempty"`
	CodeSize            int64
	Description         string
	Timeout             int
	MemorySize          int
	LastModified        string
	CodeSha256          string
	Version             string
	Environment         *environment `json:",omitempty"`
	TracingConfig       mode
	RevisionID          string `json:"RevisionId"`
	State               string
	LastUpdateStatus    string
	PackageType         string
	ImageConfigResponse *imageConfigResponse `json:",omitempty"`
	Architectures       []string
	EphemeralStorage    size
	SnapStart           snapStart
	LoggingConfig       loggingConfig
}

type environment struct{ Variables map[string]string }

type mode struct{ Mode string }

type size struct{ Size int }

type snapStart struct{ ApplyOn, OptimizationStatus string }

type loggingConfig struct{ LogFormat, LogGroup string }

type imageConfigResponse struct{ ImageConfig imageConfig }

// imageConfig is AWS's ImageConfig.
type imageConfig struct {
	EntryPoint       []string `json:",omitempty"`
	Command          []string `json:",omitempty"`
	WorkingDirectory string   `json:",omitempty"`
}

func (c *imageConfig) function() function.ImageConfig {
	return function.ImageConfig{EntryPoint: c.EntryPoint, Command: c.Command, WorkingDirectory: c.WorkingDirectory}
}

// describe returns f as AWS describes functions. Here a function can always be
// invoked at once, so that clients which wait for that need not wait.
func describe(f *function.Function, t target) configuration {
	c := configuration{
		FunctionName: f.Name, FunctionArn: t.arn(),
		Runtime: f.Runtime, Role: f.Role, Handler: f.Handler, Description: f.Description,
		CodeSize: f.Code.SizeBytes, CodeSha256: codeSHA256(f.Code.SHA256),
		Timeout: int(f.Timeout / time.Second), MemorySize: f.MemoryMB, EphemeralStorage: size{f.TmpMB},
		LastModified: timeString(f.Modified), Version: function.LatestVersion, RevisionID: f.Revision,
		TracingConfig: mode{"PassThrough"}, State: "Active", LastUpdateStatus: "Successful",
		PackageType: string(f.PackageType), Architectures: []string{architecture()},
		SnapStart:     snapStart{"None", "Off"},
		LoggingConfig: loggingConfig{"Text", "/aws/lambda/" + f.Name},
	}
	if len(f.Environment) > 0 {
		c.Environment = &environment{f.Environment}
	}
	if i := f.ImageConfig; len(i.EntryPoint) > 0 || len(i.Command) > 0 || i.WorkingDirectory != "" {
		c.ImageConfigResponse = &imageConfigResponse{imageConfig{i.EntryPoint, i.Command, i.WorkingDirectory}}
	}
	return c
}

// arn returns the function's ARN, qualified where the request was.
func (t target) arn() string {
	if t.qualifier != "" {
		return function.ARN(t.name) + ":" + t.qualifier
	}
	return function.ARN(t.name)
}

// codeSHA256 turns a digest from hex into base64, which AWS uses.
func codeSHA256(digest string) string {
	sum, err := hex.DecodeString(digest)
	if err != nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(sum)
}

// architecture is AWS's name of the processor that this program runs on.
func architecture() string {
	if runtime.GOARCH == "amd64" {
		return "x86_64"
	}
	return runtime.GOARCH
}

// settings are the parts of CreateFunction and UpdateFunctionConfiguration
// that are the same. What is nil was not given.
type settings struct {
	Runtime          *string
	Role             *string
	Handler          *string
	Description      *string
	Timeout          *int
	MemorySize       *int
	Environment      *environment
	EphemeralStorage *size
	ImageConfig      *imageConfig
	TracingConfig    *mode
	SnapStart        *struct{ ApplyOn string }
	DeadLetterConfig *struct{ TargetArn string }
	VpcConfig        *struct{ SubnetIds, SecurityGroupIds []string }
	KMSKeyArn        string
	Layers           []string

	FileSystemConfigs []struct{ Arn string }
}

// check refuses what would change a function's behaviour and is not there.
func (s *settings) check() error {
	switch {
	case s.VpcConfig != nil && len(s.VpcConfig.SubnetIds)+len(s.VpcConfig.SecurityGroupIds) > 0:
		return unsupported("VpcConfig", "functions are not attached to a VPC: leave it out")
	case len(s.Layers) > 0:
		return unsupported("Layers", "there are no layers: put their files into the package, or use an image")
	case len(s.FileSystemConfigs) > 0:
		return unsupported("FileSystemConfigs", "functions have no network file systems: leave them out")
	case s.KMSKeyArn != "":
		return unsupported("KMSKeyArn", "the environment is not encrypted with keys of the user: leave it out")
	case s.DeadLetterConfig != nil && s.DeadLetterConfig.TargetArn != "":
		return unsupported("DeadLetterConfig", "name a function as DestinationConfig.OnFailure in PutFunctionEventInvokeConfig instead")
	}
	return nil
}

// apply changes f as the settings say.
func (s *settings) apply(f *function.Function) {
	set(&f.Runtime, s.Runtime)
	set(&f.Role, s.Role)
	set(&f.Handler, s.Handler)
	set(&f.Description, s.Description)
	set(&f.MemoryMB, s.MemorySize)
	if s.Timeout != nil {
		f.Timeout = time.Duration(*s.Timeout) * time.Second
	}
	if s.EphemeralStorage != nil {
		f.TmpMB = s.EphemeralStorage.Size
	}
	if s.Environment != nil {
		f.Environment = maps.Clone(s.Environment.Variables)
	}
	if s.ImageConfig != nil {
		f.ImageConfig = s.ImageConfig.function()
	}
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// checkZeros refuses an explicit 0, which would be taken for the default.
func (s *settings) checkZeros() error {
	switch {
	case s.Timeout != nil && *s.Timeout == 0:
		return unsupported("Timeout", "0 is out of range: use 1 to 900 (seconds)")
	case s.MemorySize != nil && *s.MemorySize == 0:
		return unsupported("MemorySize", "0 is out of range: use 32 to 10240 (MiB)")
	case s.EphemeralStorage != nil && s.EphemeralStorage.Size == 0:
		return unsupported("EphemeralStorage", "0 is out of range: use 16 to 10240 (MiB)")
	}
	return nil
}

func checkArchitectures(given []string) error {
	if len(given) > 0 && !slices.Equal(given, []string{architecture()}) {
		return unsupported("Architectures", quote(strings.Join(given, ","))+" cannot be run here: use "+architecture())
	}
	return nil
}

func unsupported(field, message string) error {
	return awshttp.NewError(awshttp.InvalidParameterValue, field+": "+message)
}

// fields is how AWS calls the fields that the platform finds fault with. It is
// constant.
var fields = map[string]string{
	"name":                         "FunctionName",
	"description":                  "Description",
	"packageType":                  "PackageType",
	"runtime":                      "Runtime",
	"handler":                      "Handler",
	"code":                         "Code",
	"tags":                         "Tags",
	"imageConfig":                  "ImageConfig",
	"imageConfig.workingDirectory": "ImageConfig.WorkingDirectory",
	"environment":                  "Environment",
	"memoryMB":                     "MemorySize",
	"timeout":                      "Timeout",
	"tmpMB":                        "EphemeralStorage",
	"reservedConcurrency":          "ReservedConcurrentExecutions",
	"provisionedConcurrency":       "ProvisionedConcurrentExecutions",
	"async.maxRetries":             "MaximumRetryAttempts",
	"async.maxAge":                 "MaximumEventAgeInSeconds",
	"async.onFailure":              "DestinationConfig.OnFailure",
	"async.onSuccess":              "DestinationConfig.OnSuccess",
}

// named gives the field that an error is about the name that AWS's clients
// know it by.
func named(err error) error {
	bad, ok := errors.AsType[*function.Error](err)
	if !ok || fields[bad.Field] == "" {
		return err
	}
	renamed := *bad
	renamed.Field = fields[bad.Field]
	return &renamed
}
