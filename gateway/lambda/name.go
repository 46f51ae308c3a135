package lambda

import (
	"strings"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
)

// maxNameBytes is how long a function's name or ARN may be.
const maxNameBytes = 256

// target is what a request's path and query say about which function is meant.
type target struct {
	name string
	// qualifier is empty or LatestVersion.
	qualifier string
}

// parseTarget takes apart what clients give for a function: its name, a partial
// ARN (account:function:name) or an ARN, each perhaps with a qualifier, which
// may be given apart from it as well. The region of an ARN is not looked at.
func parseTarget(given, qualifier string) (target, error) {
	name, own, ok := splitName(given)
	if !ok {
		return target{}, awshttp.NewError(awshttp.InvalidParameterValue,
			"FunctionName: "+quote(given)+" is neither a function's name nor its ARN: a name has 1 to 64 letters, digits, '-' and '_'")
	}
	if name.account != "" && name.account != function.AccountID {
		return target{}, notFound(given)
	}
	switch {
	case own == "":
		own = qualifier
	case qualifier != "" && qualifier != own:
		return target{}, awshttp.NewError(awshttp.InvalidParameterValue,
			"The derived qualifier from the function name does not match the specified qualifier.")
	}
	if own != "" && own != function.LatestVersion {
		return target{}, notFound(function.ARN(name.function) + ":" + own)
	}
	return target{name.function, own}, nil
}

type qualifiedName struct{ account, function string }

// splitName is the syntax of parseTarget.
func splitName(given string) (name qualifiedName, qualifier string, ok bool) {
	if len(given) > maxNameBytes {
		return name, "", false
	}
	rest := given
	if arn, isARN := strings.CutPrefix(given, "arn:"); isARN {
		// partition:lambda:region:account:function:...
		partition, after, _ := strings.Cut(arn, ":")
		service, after, _ := strings.Cut(after, ":")
		_, after, _ = strings.Cut(after, ":")
		account, after, _ := strings.Cut(after, ":")
		kind, after, _ := strings.Cut(after, ":")
		if !strings.HasPrefix(partition, "aws") || service != "lambda" || !isAccount(account) || kind != "function" {
			return name, "", false
		}
		name.account, rest = account, after
	} else {
		if account, after, more := strings.Cut(rest, ":"); more && isAccount(account) {
			name.account, rest = account, after
		}
		if after, prefixed := strings.CutPrefix(rest, "function:"); prefixed && after != function.LatestVersion {
			rest = after
		}
	}
	var qualified bool
	name.function, qualifier, qualified = strings.Cut(rest, ":")
	return name, qualifier, function.ValidName(name.function) && (!qualified || isQualifier(qualifier))
}

// isAccount reports whether s has the form of an AWS account's id.
func isAccount(s string) bool {
	if len(s) != len(function.AccountID) {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func isQualifier(s string) bool {
	return s != "" && len(s) <= 128 && strings.IndexFunc(s, notInQualifier) < 0
}

func notInQualifier(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '$' && r != '_' && r != '-'
}

func notFound(what string) error {
	return awshttp.NewError(awshttp.ResourceNotFound, "Function not found: "+what)
}

// quote shows what a client gave, shortened.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		s = s[:most] + "..."
	}
	return `"` + strings.ToValidUTF8(s, "?") + `"`
}
