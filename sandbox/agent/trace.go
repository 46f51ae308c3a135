package agent

import "strings"

// xrayTrace turns a W3C trace context into the form that Lambda functions get,
// AWS X-Ray's. Anything else gives an empty string.
func xrayTrace(traceParent string) string {
	fields := strings.Split(traceParent, "-")
	if len(fields) != 4 || fields[0] != "00" || !isHex(fields[1], 32) || !isHex(fields[2], 16) || !isHex(fields[3], 2) {
		return ""
	}
	sampled := "0"
	if strings.Contains("13579bdf", fields[3][1:]) {
		sampled = "1"
	}
	return "Root=1-" + fields[1][:8] + "-" + fields[1][8:] + ";Parent=" + fields[2] + ";Sampled=" + sampled
}

func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}
