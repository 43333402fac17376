package ipam

import "bytes"

// contents is what the file says, apart from the allocations and the history.
type contents struct {
	each      func(Allocation)
	cursors   map[string]cursor
	claimants []Claimant
	addresses items
	promises  []*offer
	err       error // the first thing that does not fit
}

func newContents(each func(Allocation)) *contents {
	return &contents{each: each, cursors: map[string]cursor{}}
}

// take reads one key and its value. What does not fit is noted and not returned: only the file's format, which comes
// later, says whether it is a fault.
func (c *contents) take(bucket, key, value []byte) error {
	if err := c.read(string(bucket), key, value); err != nil && c.err == nil {
		c.err = err
	}
	return nil
}

func (c *contents) read(bucket string, key, value []byte) error {
	switch bucket {
	case string(bucketAddresses):
		return c.addresses.read(key, value, func(key, value []byte) error {
			line, err := decodeAllocation(key, value)
			if err == nil {
				c.each(line)
			}
			return err
		})
	case string(bucketLedger):
		if !bytes.Equal(key, keyPromises) {
			return nil
		}
		promises, err := decodePromises(value)
		c.promises = promises
		return err
	case string(bucketPools):
		at, err := decodeCursor(key, value)
		c.cursors[string(key)] = at
		return err
	case string(bucketDisputes):
		claimant, err := decodeClaimant(key, value)
		c.claimants = append(c.claimants, claimant)
		return err
	}
	return nil
}
