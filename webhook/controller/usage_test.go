package controller

import (
	"math/big"
	"testing"
)

// What kubectl's column says of a capacity: small ones as they are, large ones as people think of networks.
func TestRoughly(t *testing.T) {
	power := func(e uint, less int64) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), e)
		return n.Sub(n, big.NewInt(less))
	}
	for _, tc := range []struct {
		n    *big.Int
		want string
	}{
		{big.NewInt(0), "0"}, {big.NewInt(253), "253"}, {power(16, 2), "65534"}, {power(32, 2), "4294967294"}, {power(64, 1), "2^64"}, {power(128, 1), "2^128"}, {power(64, -1), "2^64"},
		{new(big.Int).Mul(power(64, 0), big.NewInt(3)), ">2^65"}, {power(40, 1<<34), ">2^39"},
	} {
		if got := roughly(tc.n); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.n, got, tc.want)
		}
	}
}
