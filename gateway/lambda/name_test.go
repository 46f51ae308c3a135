package lambda

import (
	"strings"
	"testing"

	"github.com/volley-run/volley/function"
)

func TestFunctionsAreNamedAsOnAWS(t *testing.T) {
	for _, tc := range []struct {
		given, qualifier string
		want             target
		ok               bool
	}{
		{"f", "", target{"f", ""}, true},
		{"my-Function_1", "$LATEST", target{"my-Function_1", "$LATEST"}, true},
		{"f:$LATEST", "", target{"f", "$LATEST"}, true},
		{"f:$LATEST", "$LATEST", target{"f", "$LATEST"}, true},
		{"000000000000:function:f", "", target{"f", ""}, true},
		{"000000000000:f", "", target{"f", ""}, true},
		{"function:f", "", target{"f", ""}, true},
		{"function", "", target{"function", ""}, true},
		{"function:$LATEST", "", target{"function", "$LATEST"}, true},
		{"function:function:$LATEST", "", target{"function", "$LATEST"}, true},
		{"123456789012", "", target{"123456789012", ""}, true},
		{"arn:aws:lambda:us-east-1:000000000000:function:f", "", target{"f", ""}, true},
		{"arn:aws-cn:lambda:anywhere:000000000000:function:f:$LATEST", "", target{"f", "$LATEST"}, true},

		{"", "", target{}, false},
		{"f.g", "", target{}, false},
		{"f:", "", target{}, false},
		{"f:1", "", target{}, false},
		{"f:live", "", target{}, false},
		{"f", "1", target{}, false},
		{"f:$LATEST", "1", target{}, false},
		{"f:$LATEST:x", "", target{}, false},
		{"111111111111:function:f", "", target{}, false},
		{"arn:aws:lambda:us-east-1:111111111111:function:f", "", target{}, false},
		{"arn:aws:s3:us-east-1:000000000000:function:f", "", target{}, false},
		{"arn:aws:lambda:us-east-1:000000000000:layer:f", "", target{}, false},
		{"arn:aws:lambda:us-east-1:000000000000:function", "", target{}, false},
		{"arn:aws:lambda", "", target{}, false},
		{"arn:", "", target{}, false},
		{strings.Repeat("f", 65), "", target{}, false},
		{"f:" + strings.Repeat("q", 300), "", target{}, false},
	} {
		got, err := parseTarget(tc.given, tc.qualifier)
		if (err == nil) != tc.ok || err == nil && got != tc.want {
			t.Errorf("%q, %q: %+v, %v; want %+v, %v", tc.given, tc.qualifier, got, err, tc.want, tc.ok)
		}
	}
}

func FuzzFunctionName(f *testing.F) {
	for _, s := range []string{"f", "f:$LATEST", "000000000000:function:f", "arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST", "arn:::::::"} {
		f.Add(s, "")
		f.Add(s, "$LATEST")
	}
	f.Fuzz(func(t *testing.T, given, qualifier string) {
		got, err := parseTarget(given, qualifier)
		if err != nil {
			return
		}
		if !function.ValidName(got.name) || got.qualifier != "" && got.qualifier != function.LatestVersion {
			t.Errorf("%q, %q: %+v", given, qualifier, got)
		}
		again, err := parseTarget(got.arn(), "")
		if err != nil || again != got {
			t.Errorf("%q, %q: %+v, but its ARN %s gives %+v, %v", given, qualifier, got, got.arn(), again, err)
		}
	})
}
