package firewall

import "errors"

// errTooMany is the cause when a list has no normal form of at most floatip.MaxFirewallEntries entries.
var errTooMany = errors.New("too many different networks and ports")
