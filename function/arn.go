package function

// Region and AccountID stand in ARNs, where AWS clients expect to find some.
const (
	Region    = "us-east-1"
	AccountID = "000000000000"
)

// ARN returns the name of a function as AWS writes it, without a version.
func ARN(name string) string {
	return "arn:aws:lambda:" + Region + ":" + AccountID + ":function:" + name
}
