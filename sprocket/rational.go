package sprocket

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// Rational is an exact fraction: a frame rate (frames a second), a time base
// (seconds a tick) or an aspect ratio. The zero value means "unknown". Den is
// positive in every valid Rational.
type Rational struct {
	Num int64 `json:"num"`
	Den int64 `json:"den"`
}

// ParseRational reads "30000/1001", "399:400" or "25". "0/0", "0/1" and "N/A"
// give the zero Rational and no error: that is how media tools write "unknown".
func ParseRational(s string) (Rational, error) {
	num, den, found := strings.Cut(s, "/")
	if !found {
		num, den, found = strings.Cut(s, ":")
	}
	if !found {
		den = "1"
	}
	if s == "" || s == "N/A" {
		return Rational{}, nil
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil {
		return Rational{}, fmt.Errorf("parse fraction %q: numerator is not a whole number", s)
	}
	d, err := strconv.ParseInt(den, 10, 64)
	if err != nil || d < 0 {
		return Rational{}, fmt.Errorf("parse fraction %q: denominator is not a positive whole number", s)
	}
	if n == 0 || d == 0 {
		return Rational{}, nil
	}
	return Rational{n, d}.Reduce(), nil
}

// IsZero reports whether r is unknown.
func (r Rational) IsZero() bool { return r.Num == 0 || r.Den == 0 }

// Invert returns 1/r: the frame duration of a frame rate. The inverse of the
// zero Rational is zero.
func (r Rational) Invert() Rational {
	if r.IsZero() {
		return Rational{}
	}
	return Rational{r.Den, r.Num}
}

// Reduce returns r in lowest terms.
func (r Rational) Reduce() Rational {
	a, b := r.Num, r.Den
	if a < 0 {
		a = -a
	}
	for b != 0 {
		a, b = b, a%b
	}
	if a < 0 { // of the lowest int64, which has no positive counterpart
		a = -a
	}
	if a == 0 {
		return r
	}
	return Rational{r.Num / a, r.Den / a}
}

// Float returns r as a float64, 0 when unknown.
func (r Rational) Float() float64 {
	if r.Den == 0 {
		return 0
	}
	return float64(r.Num) / float64(r.Den)
}

// String writes r as "num/den".
func (r Rational) String() string { return fmt.Sprintf("%d/%d", r.Num, r.Den) }

// Rescale converts a number of ticks from time base r (seconds a tick) to time
// base to, rounding to nearest with halves away from zero. It is exact for any
// int64 in and panics if a time base is unknown.
func (r Rational) Rescale(ticks int64, to Rational) int64 {
	if r == to {
		return ticks
	}
	num := new(big.Int).Mul(big.NewInt(ticks), big.NewInt(r.Num))
	num.Mul(num, big.NewInt(to.Den))
	den := new(big.Int).Mul(big.NewInt(r.Den), big.NewInt(to.Num))
	return roundQuotient(num, den)
}

// Duration converts ticks of time base r to a time.Duration, to nearest.
func (r Rational) Duration(ticks int64) time.Duration {
	return time.Duration(r.Rescale(ticks, Rational{1, int64(time.Second)}))
}

// Ticks converts d to ticks of time base r, to nearest.
func (r Rational) Ticks(d time.Duration) int64 {
	return Rational{1, int64(time.Second)}.Rescale(int64(d), r)
}

// Seconds converts ticks of time base r to seconds.
func (r Rational) Seconds(ticks int64) float64 { return float64(ticks) * r.Float() }

func roundQuotient(num, den *big.Int) int64 {
	if den.Sign() == 0 {
		panic("sprocket: rescale with an unknown time base")
	}
	twice := new(big.Int).Lsh(num, 1)
	if (num.Sign() < 0) != (den.Sign() < 0) {
		twice.Sub(twice, den)
	} else {
		twice.Add(twice, den)
	}
	return twice.Quo(twice, new(big.Int).Lsh(den, 1)).Int64()
}
