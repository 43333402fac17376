package controller

import (
	"math/big"
	"strconv"
	"strings"

	"floatip.io/floatip/ipam"
)

// usageOf returns what kubectl's columns say of a pool: used and capacity, and what rests, of each family that it has.
func usageOf(s ipam.PoolStatus) (usage, resting string) {
	var used, rest []string
	for _, c := range []ipam.Count{s.IPv4, s.IPv6} {
		if count(c) == nil {
			continue
		}
		used = append(used, strconv.Itoa(c.Used)+"/"+roughly(c.Capacity))
		rest = append(rest, strconv.Itoa(c.Quarantined))
	}
	return strings.Join(used, ","), strings.Join(rest, ",")
}

// roughly returns n in few characters: as many addresses as IPv4 can have are counted, more are written as a power of two,
// as IPv6 networks are thought of: "254", "2^64", or ">2^64" if it is more than one in a thousand away from each.
func roughly(n *big.Int) string {
	if n.BitLen() <= 32 {
		return n.String()
	}
	exponent := n.BitLen() - 1 // 2^exponent <= n
	for _, e := range []int{exponent, exponent + 1} {
		power := new(big.Int).Lsh(big.NewInt(1), uint(e))
		away := new(big.Int).Sub(power, n)
		if away.Abs(away).Mul(away, big.NewInt(1000)).Cmp(power) <= 0 {
			return "2^" + strconv.Itoa(e)
		}
	}
	return ">2^" + strconv.Itoa(exponent)
}
