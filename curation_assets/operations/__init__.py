"""Operations on a whole warehouse: plan, gc, purge, transfer, doctor, SQL, reports, shares."""
