package mem

// ParseHostRegions is parseHostRegions.
func ParseHostRegions(text []byte) ([]HostRegion, error) { return parseHostRegions(text) }
